//! What other programs read and write.

pub(crate) mod pickle;
