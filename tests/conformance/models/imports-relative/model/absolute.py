ABSOLUTE = "absolute"
