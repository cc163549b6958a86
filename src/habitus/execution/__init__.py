"""From plans to actions: executing chunks, re-planning, keeping plans half denoised, thinking slowly."""
