"""One file each: a frozen config that plans and then acts. Methods do not import each other."""
