//! The feature schema and the only code that fills a row, for training and for serving.
