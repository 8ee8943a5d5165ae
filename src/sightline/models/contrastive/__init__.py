"""Two towers, one space: CLIP, SigLIP, CoCa."""
