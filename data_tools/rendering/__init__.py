"""Facts through templates into exposures and questions."""
