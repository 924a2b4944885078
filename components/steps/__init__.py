"""What Kubeflow sees: each file is one step, which reads artifacts, calls one function of the package and writes artifacts.

Only the source of a step's function is shipped, so imports stand in its body and its signature knows nothing of ours. `component` is
kfp's decorator with our image; the image holds this package, and on a laptop the environment does.
"""

import functools
import os

from kfp import dsl

IMAGE = os.environ.get("CONCORDANT_IMAGE", "ghcr.io/concordant/concordant-python:0.1.0")
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
