"""Methods that let many weights share few values."""
