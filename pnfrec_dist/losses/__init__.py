"""L = CE_p + alpha * CE_n + beta * L_c. Every loss returns (total, count); the step divides by the global count."""
