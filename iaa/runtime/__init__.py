"""What every command needs of its process: arguments, errors, signals, several processes, bars, files."""
