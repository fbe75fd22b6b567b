//! LightGBM models: parsed from their text, evaluated here.
