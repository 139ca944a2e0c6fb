//! What is answered to the guest's questions, and what is asked upstream.
