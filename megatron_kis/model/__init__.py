"""The models of a ladder: their shapes (``ladder``), attention (``attention``), and how they are built (``build``)."""
