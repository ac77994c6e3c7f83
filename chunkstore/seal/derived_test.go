package seal_test

const (
	derivedData  = ""
	derivedTree  = ""
	derivedList  = ""
	derivedOwner = ""
)
