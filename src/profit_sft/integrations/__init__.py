"""The selective loss in other people's trainers. Nothing else in the package imports from here."""
