"""What objectives, topology and layouts share: filters, feature sizes, the array API."""
