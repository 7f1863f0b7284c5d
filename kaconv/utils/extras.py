"""Extras: packages that `pip install kaconv` alone does not bring."""

_EXTRAS = {
    "train": ("accelerate", "filelock", "scipy", "sklearn", "tensorboard", "yaml"),
    "viz": ("captum", "ipywidgets", "matplotlib", "pandas", "seaborn"),
    "notebooks": (
        "bs4",
        "ipykernel",
        "jinja2",
        "jupyterlab",
        "nbconvert",
        "nbformat",
        "nh3",
        "papermill",
        "psutil",
        "pygments",
    ),
    "bench": ("timm",),
    "cluster": ("submitit",),
    "hub": ("huggingface_hub",),
    "detection": ("pycocotools", "torchmetrics"),
    "metrics": ("quantus",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}


def missing_package(error: ModuleNotFoundError, *, needed: str | None = None) -> str:
    """One line on an import that failed: the package, and the extra that brings it where there is one.

    Args:
        needed: the extra that brings all that the caller will need, if that is more than this package's own.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((needed or extra for extra, packages in _EXTRAS.items() if package in packages), None)
    return f"this needs {package}, which is not installed: pip install 'kaconv[{extra}]'" if extra else str(error)
