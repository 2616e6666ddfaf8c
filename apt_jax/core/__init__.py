"""What every other room may use: configuration, the hook contract, schedules, errors."""
