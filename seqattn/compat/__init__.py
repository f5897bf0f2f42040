"""Other packages' interfaces over seqattn's kernels, for programs written against them."""
