"""What is learned and measured: classes, or an embedding."""
