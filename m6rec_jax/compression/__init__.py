"""`m6rec compress`: smaller models made of trained ones (paper section 5)."""
