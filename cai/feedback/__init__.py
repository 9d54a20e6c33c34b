"""AI feedback: judge protocols side by side behind one interface, and the judge that puts a recipe's choice together."""
