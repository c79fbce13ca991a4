"""NAG for other people's models: measure them, guide them, train their null condition.

diffusers and k-diffusion are met in this folder only; the rest of `nag` never imports it."""
