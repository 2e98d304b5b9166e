"""What runs inside verl's processes: adapters, which decide nothing."""
