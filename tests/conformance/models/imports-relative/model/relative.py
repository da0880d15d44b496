RELATIVE = "relative"
