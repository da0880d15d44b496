def one_more(number):
    return number + 1
