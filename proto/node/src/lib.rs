//! One whole peer as one value.
#![forbid(unsafe_code)]
