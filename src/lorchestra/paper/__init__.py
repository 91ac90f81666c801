"""The paper's figures and ablations: recipes, trainings, pictures, tables and sentences."""
