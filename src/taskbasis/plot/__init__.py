"""Pictures: accuracy against storage, cosines of task vectors, what forgetting costs.

One picture a file; what they share stands in ``page`` and ``labels``.
"""

from taskbasis.plot.forget import forget_plot
from taskbasis.plot.gram import gram_plot
from taskbasis.plot.page import check_picture
from taskbasis.plot.storage import storage_plot

__all__ = ["check_picture", "forget_plot", "gram_plot", "storage_plot"]
