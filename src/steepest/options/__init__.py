"""What one writes into an optimizer's arguments: clips, filters, penalties, averages, decay."""
