"""The words of gusset: names, values, what a model gets, where values come from, how they are masked."""
