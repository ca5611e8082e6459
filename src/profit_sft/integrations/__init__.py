"""The selective loss in other people's trainers. Of the package, a command alone imports from here."""
