"""The paper's figures, its ablations and what its readers asked for: recipes, pictures, tables and sentences."""
