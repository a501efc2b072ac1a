"""The figure that jaxmlp draws on: matplotlib's, and notebooks show it. Imported with the first picture."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure without pyplot, whose global state is what makes notebooks show figures otherwise."""

    def _repr_png_(self) -> bytes:
        """The picture for a notebook's cell."""
        png = io.BytesIO()
        self.savefig(png, format="png", bbox_inches="tight")
        return png.getvalue()
