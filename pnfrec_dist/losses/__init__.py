"""L = CE_p + alpha * CE_n + beta * L_c. Losses return totals; the step divides by the global counts."""
