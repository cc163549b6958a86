"""What diffusion and flow policies share: noise schedules, samplers, denoisers, averages, training."""
