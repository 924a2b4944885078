"""What Kubeflow sees: each file is one step, which reads artifacts, calls one function of the package and writes artifacts."""
