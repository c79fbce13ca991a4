"""Noise Awareness Guidance as a ComfyUI node: copy this file to ComfyUI/custom_nodes.

The negative needs no training: the time embedding is disturbed (Time-Step Guidance), or replaced by
a null vector if a .safetensors file with one is given. It is added to the sampler's own CFG:

    d = d_cfg + w (d_cond - d_neg)

which is the same for denoised images as for predictions, since the weights sum to one."""

import torch

EMBEDDERS = ("time_embed", "t_embedder", "time_in")  # UNets, SD3 and DiT, Flux


def embedder_of(network):
    """The network's module that turns a timestep into an embedding."""
    for name in EMBEDDERS:
        if hasattr(network, name):
            return getattr(network, name)
    raise ValueError(f"{type(network).__name__} has no time embedder called one of {EMBEDDERS}")


class NoiseAwarenessGuidance:
    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/guidance", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        number = {"default": 0.5, "min": 0.0, "max": 10.0, "step": 0.05}
        disturbance = {"default": 2.0, "min": 0.0, "max": 10.0, "step": 0.1}
        return {
            "required": {
                "model": ("MODEL",),
                "w": ("FLOAT", number),
                "disturbance": ("FLOAT", disturbance),
                "null_file": ("STRING", {"default": ""}),
            }
        }

    def patch(self, model, w, disturbance, null_file):
        if null_file:
            from safetensors.torch import load_file

            vector = load_file(null_file).get("null_noise")
            if vector is None:
                raise ValueError(
                    f"{null_file} holds no null_noise: give NAG's null_noise.safetensors"
                )
        patched, draw = model.clone(), torch.Generator().manual_seed(0)
        embedder = embedder_of(model.model.diffusion_model)

        def other(module, inputs, e):
            if null_file:
                return vector.to(e).expand_as(e)
            n = torch.randn(e.shape[-1], generator=draw.manual_seed(0)).to(e)
            return e + disturbance * e.std(-1, keepdim=True) * n

        def after_cfg(args):
            from comfy.samplers import calc_cond_batch

            hook = embedder.register_forward_hook(other)
            try:
                (negative,) = calc_cond_batch(
                    args["model"],
                    [args["cond"]],
                    args["input"],
                    args["sigma"],
                    args["model_options"],
                )
            finally:
                hook.remove()
            return args["denoised"] + w * (args["cond_denoised"] - negative)

        patched.set_model_sampler_post_cfg_function(after_cfg)
        return (patched,)


NODE_CLASS_MAPPINGS = {"NoiseAwarenessGuidance": NoiseAwarenessGuidance}
NODE_DISPLAY_NAME_MAPPINGS = {"NoiseAwarenessGuidance": "Noise Awareness Guidance (NAG)"}
