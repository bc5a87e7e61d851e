"""Small-image nets of the distillation literature, registered with timm: ``import
kd_app.models.small``, then ``timm.create_model("resnet8")``.
"""

from kd_app.models.small import mobile, plain, residual  # noqa: F401
