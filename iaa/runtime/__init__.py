"""What every command needs: arguments, errors, signals, several processes, progress bars, files."""
