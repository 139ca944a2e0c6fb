//! What a guest may reach, and the names of what is refused.
