//! Approximate nearest neighbours by inner product, filters inside the search.
