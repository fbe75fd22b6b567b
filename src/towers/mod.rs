//! The user and the item encoder: two small networks into one space.
