//! Which address was given for which name, and what may be reached by it.
