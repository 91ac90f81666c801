"""The paper's figures, its ablations and what its readers asked for: pictures, tables and sentences of saved runs."""
