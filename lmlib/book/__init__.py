"""What only the book needs: claims, exercises, plots, records, widgets and the build pipeline."""
