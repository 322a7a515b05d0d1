"""What was computed for each image: records, tables, pictures and pages of routes."""
