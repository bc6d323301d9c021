"""The papers' claims: what was published, the study that tests it, and the rule by which it is judged."""
