"""Messages between neurons along learned functions of the weights, and edge states."""
