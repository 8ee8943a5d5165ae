"""Every model family; `zoo.load` finds the one a folder needs."""
