"""Pipeline parallelism: schedules as tables of ticks, what they cost, and what runs them."""
