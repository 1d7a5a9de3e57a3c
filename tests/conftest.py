"""What libraries say about themselves when they are imported is not ours to fail on; all later warnings are errors."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ghm.training  # noqa: F401
