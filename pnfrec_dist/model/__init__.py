"""Item table, encoder, dual encoder (Ivanova et al., RecSys '25; Kang and McAuley, ICDM '18)."""
